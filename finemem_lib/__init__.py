"""Fine-Mem workbench: which memory operation deserves the credit, and how to train with it.

Importing the package loads none of the heavy libraries.
"""

__version__ = "0.1.0"
