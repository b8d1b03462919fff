"""One preset over a grid of settings and seeds, in parallel processes, and what comes of it.

`grid` reads the axes and makes the cells, `shared` prepares once what several cells start from, `cell` runs one of
them, `scheduler` runs all, `table` keeps a row for each in one Parquet file, `frontier` sets utility against epsilon
and against what attacks recovered, `page` shows it.
"""
