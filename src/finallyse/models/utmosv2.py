"""UTMOSv2 (arXiv 2409.09305). Being written."""
