"""Fine-Mem workbench: which memory operation deserves the credit, and how to train with it.

`from finemem_lib import ...` offers the names of `__init__.pyi`. Each is imported from its module
when it is first used, so that importing the package loads neither numpy nor torch.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
