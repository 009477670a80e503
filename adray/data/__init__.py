"""From a folder of images to batches.

Which images there are: `readers` finds a data set and has a row per layout. Each layout lists its
samples in a file of its own (`mvtec`, `visa`, `custom`, `folder`, `json_lists`, `own_list`, `pairs`,
`class_folders`, `m2ad`, `robustad`, `kaputt`, `eyecandies`), with what `base`, `names`, `labels`,
`tables`, `mask_files` and `splits` share. `published` says where the published sets are.

What the files hold: `file_facts` looks at one, `inspect_files` at all of a data set and remembers.
`image_file` reads them in their own numbers, `pixel_rule` and `pixel_meaning` say what these mean,
`masks` what a mask marks, and `decode` brings an image to its size.

What is odd about them: `accounting` tells what each file was taken for, `findings` and
`pixel_checks` what would change a result. `checks` is all of it, once, before a trial starts.

From there to batches: `cache` decodes each category once into a `decoded_file`, `pixels` reads from
it, `loader` makes batches, `normalization` scales them, and `loaders` is the door to all of this.
`datasets` has the specification's classes beside it.

A look before training: `recognise` tells how an unknown folder is to be read, `survey` gathers what
can be said of it from `survey_counts`, `survey_pictures` and `near_duplicates`, and `survey_text`
and `survey_page` write it. `side_by_side` reads files with a few threads.

Other images: `auxiliary` ones that are no product, drawn ones in `synthetic` and
`synthetic_images`, and `synthetic_defects` on copies of real ones.
"""
