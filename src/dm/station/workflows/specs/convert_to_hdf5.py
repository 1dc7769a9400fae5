# Detector images of other formats as HDF5.
{
    "name": "convert-to-hdf5",
    "description": "Conversion of detector images (TIFF, CBF, EDF, MarCCD and what else fabio reads) to NeXus HDF5. All frames "
    "and their headers are kept, and the result is compared pixel by pixel before the stage succeeds. It goes to analysis/.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "Results are written here, below the job's id.",
        },
        "compression": {
            "type": "multiple_choice",
            "choices": ["gzip", "bitshuffle", "none"],
            "default": "gzip",
            "description": "Compression within the file; bitshuffle is read with hdf5plugin.",
        },
    },
    "stages": {
        "01-CONVERT": {
            "command": 'dm-process convert --output "$outputDirectory/$id/convert-to-hdf5" --within "$experimentFilePath" '
            '--compression "$compression" -- $filePath',
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
