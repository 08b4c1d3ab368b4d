"""What reports are made of: tables as values, and the frame of a page that needs nothing else.

sheet    a table as a value, and as Markdown
frame    a page with its styles, from a template
saving   a report's files, replaced in one step each
figure   a matplotlib figure as SVG that takes its text colour from the page around it
"""
