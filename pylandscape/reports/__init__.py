"""Results as one HTML file that needs no network.

writing      `report`: what is given, read, and written
sections     what the page says of each kind of result
panes        a picture: its static PNG, and behind it what a script draws
scenes       the scenes that the script draws: surfaces, contours, curves, spectra, clouds, paths
page         the page itself: its style and its script
"""
