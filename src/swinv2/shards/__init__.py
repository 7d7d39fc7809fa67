"""Labels and features of more images than fit one process: shard by shard, on this machine or on a cluster.

`sources` divides what a user names into shards (`shard`), `rows` reads them, `worker` computes them, `answers` writes
them. `run` is the whole run in one process, `cluster` on Ray; `manifest` says what a run computes, `output` publishes
files, `lists` stores the names of a folder, `places` reaches files here and in stores.
"""
