# Intensity over q of SAXS and WAXS images.
{
    "name": "azimuthal-integration",
    "description": "Azimuthal integration of SAXS and WAXS images with pyFAI. Each frame of an HDF5 file becomes a curve of "
    "intensity over q with its errors. The geometry comes from a PONI file, from numbers, or from the NeXus file itself. "
    "Curves go to analysis/ as HDF5 (NXdata) and as text.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "Results are written here, below the job's id.",
        },
        "poni": {"type": "path", "description": "Calibration by pyFAI."},
        "distance": {
            "type": "float",
            "description": "Without PONI: sample to detector, mm; otherwise as the file has it.",
        },
        "beamX": {"type": "float", "description": "Column where the beam hits, pixels; otherwise as the file has it."},
        "beamY": {"type": "float", "description": "Row where the beam hits, pixels; otherwise as the file has it."},
        "pixelX": {"type": "float", "description": "Width of a pixel, micrometres; otherwise as the file has it."},
        "pixelY": {"type": "float", "description": "Height of a pixel, micrometres; otherwise as the file has it."},
        "energy": {"type": "float", "description": "Photon energy, keV; otherwise as the file has it."},
        "mask": {"type": "path", "description": "Image that is not 0 where pixels are to be left out."},
        "dataset": {"description": "Path of the images in the file; otherwise what NeXus marks, else the largest."},
        "points": {"type": "int", "default": 1000, "description": "Points of the curve."},
        "unit": {
            "type": "multiple_choice",
            "choices": ["q_A^-1", "q_nm^-1", "2th_deg"],
            "default": "q_A^-1",
            "description": "What the curve runs over.",
        },
        "polarization": {"type": "float", "description": "Polarization factor to correct for, -1 to 1."},
    },
    "stages": {
        "01-INTEGRATE": {
            "command": 'dm-process integrate --output "$outputDirectory/$id/azimuthal-integration" --within "$experimentFilePath" '
            '--poni "$poni" --distance "$distance" '
            '--beam-x "$beamX" --beam-y "$beamY" --pixel-x "$pixelX" --pixel-y "$pixelY" --energy "$energy" --mask "$mask" '
            '--dataset "$dataset" --points "$points" --unit "$unit" --polarization "$polarization" -- $filePath',
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
