"""What layers put out while they train: from hooks on a model to one row of a table, and rules that judge it.

How each layer of a model is found is in `ics_apps.probes.selection`; what a batch tells apart from training is beside
this folder.
"""
