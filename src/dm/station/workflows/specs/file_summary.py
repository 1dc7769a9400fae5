# What is in a NeXus or SPEC file.
{
    "name": "file-summary",
    "description": "Summary of NeXus, HDF5 and SPEC files. Of HDF5: metadata, the default plot, every group, dataset and link "
    "(also those that lead nowhere); of SPEC: every scan with its command, points, peak and centre of mass. Text for people and "
    "JSON for programs go to analysis/.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "Results are written here, below the job's id.",
        },
    },
    "stages": {
        "01-SUMMARY": {
            "command": 'dm-process summary --output "$outputDirectory/$id/file-summary" --within "$experimentFilePath" '
            "-- $filePath",
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
