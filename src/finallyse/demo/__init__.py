"""The demo's corpora: archives in the layouts of the published ones, packed from a folder of speech in seconds.

Nothing of the rest of the package imports this one: to the workflow, what is packed here is downloaded like any corpus.
"""
