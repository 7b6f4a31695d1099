"""What the package carries so that a first run needs no download: ``bundled:everyday`` (text), ``bundled:placeholder`` (a
model made by ``make_placeholder.py``)."""
