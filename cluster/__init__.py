"""Where work runs: Ray sessions, pools of search actors, the queue of shards and the store of results."""
