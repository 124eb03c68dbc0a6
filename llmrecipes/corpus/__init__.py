"""The stage `corpus`: raw sources become cleaned documents in Parquet shards, with a report of what was kept and dropped.

arguments: the keys · parts: units of work · readers, documents: files, pages, archives and the Hub to rows, rows to
documents · steps/: one file per kind of step · hashing, duplicates, contamination: what two documents share · phases: the
work, in atomic tasks · engine, executors: who runs the tasks · report, plan: what a build did, what a larger one would take.
"""
