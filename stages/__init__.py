"""The pipeline: two stages, and the cache between them.

    table of texts --extract--> CACHE.h5 --train_head--> RUN/head.safetensors, RUN/run.json
                   (the encoder,         (no encoder,
                    once per text)        milliseconds an epoch)

Each command is one file here, and each is built from folders:

    extract      tables -> encoders -> extraction -> cache      every distinct text is encoded once
    train_head   cache -> splits -> heads -> runs               one head
    sweep        cache -> splits -> heads -> runs               many heads as one product; the best one is tested
    predict      tables -> encoders -> heads (by model)         new texts
    evaluate     cache or tables -> heads -> runs               a head on new rows, and how far these are from training
    audit        cache -> splits -> heads -> runs               rows whose labels are likely wrong
    report       runs -> pages                                  one page to look at
    export       runs, encoders -> exporters                     a folder that another library loads
    verify       cache, extraction -> findings                  checksums, and rows encoded again
    repair       cache, tables -> extraction -> cache           damaged blocks are encoded again
    join         cache -> cache                                 shards as one cache again
    inspect      cache or runs -> plain values                  what a file or a folder records
    speedup      baseline                                       both stages, measured beside a program without a cache

A command takes paths and settings, and returns the path of what it wrote. The file is the interface between stages.
"""
