"""Reports made from run directories alone: `page.write_report` for a browser, `tables` for a terminal or a README.

`runs` reads a directory, `groups` puts together the runs that differ only in their seed, `measures` counts, `curves` and `maps` draw in
one `style` (only these import matplotlib), `tables` and `page` write. Nothing imports torch: a report is made wherever the files are.
"""
