"""The two stages, and the cache between them.

    table of texts --extract--> CACHE.h5 --train_head--> RUN/head.safetensors, RUN/run.json
                  (the encoder,          (no encoder,
                   once per text)         milliseconds an epoch)

Stage one is ``extract``, the work of an ``extraction``: ``table``, ``formats``, ``columns`` and ``survey`` read the
rows, ``encoder_files`` and ``encoder`` the frozen model, ``tokenizing`` makes tokens of texts, ``features`` names what
is taken, ``devices`` chooses where it runs, ``batching`` and ``encode_table`` run it (``packed`` and ``attention``
without padding, where the architecture allows), ``wanted`` spares what is done already. ``verify`` holds a cache
against its checksums and its encoder, ``repair`` mends it.

Stage two is ``train_head``: ``parts`` and ``split`` divide the rows (``relabel`` gives them other labels), and ``fit``
trains on arrays: ``walk`` says which rows and masks, ``scaling`` shifts columns, ``batched`` multiplies many heads at
once, ``lanes`` puts that on threads. ``exact`` solves instead. ``metrics`` measures, ``calibration`` fits a
temperature, ``head`` is the result and ``run`` its folder. ``sweep`` does it for many settings, ``ranking`` compares
them, ``sweep_folder`` keeps what is done. Stage two never loads transformers. ``predict`` puts the two together on new
texts, ``inspect`` says what a cache, a run or a sweep is.

``speedup`` measures both against ``baseline``, the program that encodes in every epoch: ``rungs`` names the steps of
advice that it climbs, ``speedup_ladder`` runs it, ``speedup_stages`` the two stages, ``speedup_quality`` compares
accuracy, ``projection`` scales, ``speedup_report`` and ``speedup_picture`` show. ``accounting`` keeps the encoder's
books.

A stage takes paths and settings and returns the path that it wrote; ``settings`` holds their defaults, and
``progress`` is how they tell what they do.
"""
