"""The run directory: what a run writes, and how it is continued without losing anything.

Only `layout` (names) and `atomic` (file writing) are light; everything else needs Lightning and is imported from its
own module, so that reading a run never starts torch.
"""
