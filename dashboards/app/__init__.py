"""The interactive dashboard: stores in, pages in the browser out."""
