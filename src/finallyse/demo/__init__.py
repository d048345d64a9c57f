"""The demo's corpora: archives in the layouts of the published ones, packed from a folder of speech in seconds.

No other part of the package imports this one: the workflow downloads the packed archives like any corpus.
"""
