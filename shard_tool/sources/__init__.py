"""Where photos come from: every kind of source, behind one protocol.

opening.py   what a path or URL is ──> one of the kinds, or several of them joined (several.py)
folder.py, remote.py                   files one by one
zips.py, tars.py, streams.py           archives, read in place; compressed ones in one pass
parquet.py, arrow.py, hub.py           tables with a column of images

protocol.py, listing.py                what the rest of the package knows of them
"""
