"""The two stages, and the cache between them.

    table of texts --extract--> CACHE.h5 --train_head--> RUN/head.safetensors, RUN/run.json
                  (the encoder,          (no encoder,
                   once per text)         milliseconds an epoch)

Stage one is ``extract``: ``table``, ``columns`` and ``survey`` read the rows, ``encoder_files`` and ``encoder`` the
frozen model, ``features`` names what is taken from it, ``devices`` chooses where it runs, ``batching`` and
``encode_table`` run it (``packed`` without padding, where the architecture allows), ``wanted`` spares what is done
already.

Stage two is ``train_head``: ``parts`` and ``split`` divide the rows, ``fit`` trains on arrays, ``metrics`` measures,
``head`` is the result and ``run`` its folder. It never loads transformers. ``predict`` puts the two together on new
texts, ``inspect`` says what a cache or a run is.

A stage takes paths and settings and returns the path that it wrote; ``settings`` holds their defaults, and
``progress`` is how they tell what they do.
"""
