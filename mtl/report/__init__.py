"""Reports made from run directories alone: `page.write_report` for a browser, `tables` for a terminal or a README.

`runs` reads a directory, `groups` groups the runs that differ only in their seed, `measures` counts. `curves`, `maps`, `multitask`,
`tradeoff`, `detection` and `verification` draw in one `style`. `tables` and `page` write, the page from `sections` and `html`. What reads
and `tables` need no matplotlib, and nothing imports torch: a report is made wherever the files are.
"""
