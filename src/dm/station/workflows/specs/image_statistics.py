# Thumbnail and statistics of HDF5 images.
{
    "name": "image-statistics",
    "description": "Thumbnail and statistics of the images in HDF5 files. Finds the images (NeXus signal, Eiger masters with "
    "linked data, areaDetector files, plain datasets), leaves dead and saturated pixels out, and reads any size in blocks. "
    "The PNG and a JSON file with the statistics of each frame go to analysis/; the overall numbers become keys of the job.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "Results are written here, below the job's id.",
        },
        "dataset": {"description": "Path of the images in the file; otherwise what NeXus marks, else the largest."},
        "pixels": {"type": "int", "default": 512, "description": "Longer side of the thumbnail, at most."},
        "masking": {
            "type": "multiple_choice",
            "choices": ["yes", "no"],
            "default": "yes",
            "description": "Whether pixels that the detector marks (-1, -2, the largest value, pixel_mask) are left out.",
        },
    },
    "stages": {
        "01-STATISTICS": {
            "command": 'dm-process image-statistics --output "$outputDirectory/$id/image-statistics" --within "$experimentFilePath" '
            '--dataset "$dataset" '
            '--pixels "$pixels" --masking "$masking" -- $filePath',
            "parallelExec": True,
        },
        "90-PUBLISH": {
            "command": 'test -d "$outputDirectory/$id"',
            "runIf": "$experimentName",
            "artefacts": ["$outputDirectory/$id/**"],
        },
        "99-CLEAN": {
            "command": '[ -z "$experimentName" ] || [ "$jobStatus" = failed ] || rm -rf -- "$outputDirectory/$id"',
            "cleanup": True,
        },
    },
}
