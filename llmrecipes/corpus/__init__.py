"""The stage `corpus`: raw sources become cleaned documents in Parquet shards, and a report says what became of each.

arguments: the keys · parts: what is read in one go · readers, rows: files, pages, archives and the Hub to rows, rows to
documents · steps/: one file for each kind of step · hashing, duplicates, contamination: what two documents share · phases:
the work, in tasks that finish or never happened · engine: who runs the tasks · report, plan: what it was, what it takes.
"""
