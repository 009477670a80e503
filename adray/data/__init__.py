"""From a folder of images to batches.

Which images there are: `readers` finds a data set, and `mvtec`, `btad`, `visa`, `custom` and
`folder` list the samples of one layout each, with what `base` and `splits` share.

What the files hold: `file_facts` looks at one, `inspect_files` at all of a data set and remembers.
`pixel_meaning` says what numbers mean, `decode` brings an image to its size.
`checks` is all that is looked at before a trial starts.

From there to batches: `cache` decodes each category once into a `decoded_file`, `pixels` reads from
it, `loader` makes batches, `normalization` scales them, and `loaders` is the door to all of this.
`datasets` has the specification's classes beside it.

A look before training: `recognise` tells how an unknown folder is to be read, `survey` gathers what
can be said of it from `survey_counts`, `survey_pictures` and `near_duplicates`, and `survey_text`
and `survey_page` write it. `side_by_side` reads files with a few threads.

Other images: `auxiliary` ones that are no product, drawn ones in `synthetic` and
`synthetic_images`, and `synthetic_defects` on copies of real ones.
"""
