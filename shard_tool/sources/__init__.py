"""Where photos come from: every kind of source, behind one protocol.

opening.py   what a path or URL is ──> one of the kinds, or several of them joined (several.py)
folder.py, remote.py                   files one by one, here and behind a URL
zips.py, tars.py                       archives, read in place; compressed ones in one pass
tables.py, hub.py                      tables with a column of images

protocol.py, listing.py                what the rest of the package knows of them; which files are photos
"""
