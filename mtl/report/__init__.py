"""Reports made from run directories alone: `page.write_report` for a browser, `tables` for a terminal or a README.

`runs` reads a directory, `groups` puts together the runs that differ only in their seed, `measures` counts, `figures` draws
(the only module that imports matplotlib), `tables` and `page` write. Nothing imports torch: a report is made wherever the
files are.
"""
