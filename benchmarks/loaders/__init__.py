"""The loaders that `benchmarks/loader.py` compares, one file each, on the same bytes.

    variants.py        what is measured: loader x encoding x decoder, and what each has to be installed
    images.py          photos -> a shard set of 64 px JPEGs and one of raw pixels, the bytes that all loaders get
    environments.py    a virtual environment for each loader: they cannot live together
    measure.py         the process that measures one variant; runs in the loader's own environment
    stream.py          the process whose memory `benchmarks/loader_memory.py` measures
    report.py          medians, ratios and requirements of a whole run
    samples.py         the stored bytes read back, for conversions
    decoders.py        JPEG bytes -> pixels, for formats that leave the decoding to their user

A loader's file has `batches(...)`, an endless iterator of uint8 images [B, 3, H, W], and, where it has a format of its
own, `convert(...)`. Its imports stand at the top: importing the file is the import that timings leave out.
"""
