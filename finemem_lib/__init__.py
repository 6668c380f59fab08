"""Fine-Mem workbench: assign credit to memory operations, and train a memory manager with it.

`from finemem_lib import ...` offers the names in `__init__.pyi`. Each name is imported from its
module on first use, so that importing the package loads neither numpy nor torch.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
