{"key":"7a576cf00c53bc2df89355b80a233a878666c1e41c1157bb9b8592833c217b86","signature":"cRkViuQIS/o6nL1FysEMjwC/J4688TkfZCmjwChlqCsvz+ZIccGVcfqajD1LMjZ7QS/o2UN62bwBQGmzy6puDw=="}
