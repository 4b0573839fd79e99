"""Pictures of results: `plot` of each result comes here.

pictures        which function draws which result
surface, lines, spectra, clouds, paths, barrier_matrix ...   one file for each kind of picture
spectral_axis, spectra_evolution   the kernel and scale of spectra; several of them in order
overlay         marks and paths on a picture that is there
surface_strokes, cloud_strokes, cloud_steps   the marks of these
scale, style, view, cloud_look   ranges and logarithms, sizes and fonts, where points lie, colours
"""
