# The XPCS pipeline of 8-ID with dm-batch-run in place of qsub and qacct: for Grid Engine or Slurm, safe over restarts.
{
    "name": "xpcs-8id-batch",
    "description": "The XPCS pipeline of 8-ID with dm-batch-run. As xpcs-8id, but one stage submits the batch job, waits and tells "
    "how it ended, on Grid Engine or Slurm; after a restart it goes on with the same batch job, and it deletes that when the job "
    "is stopped.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "Results are written here, below the job's id.",
        },
        "clusterUrl": {
            "required": True,
            "description": "Directory on the cluster as GridFTP calls it, gsiftp://host:port/path.",
        },
        "clusterDirectory": {
            "required": True,
            "type": "path",
            "description": "The same directory as the cluster's hosts call it.",
        },
        "batchEnvironment": {
            "type": "path",
            "description": "Shell file to source before qsub and qacct, settings.sh of the cell.",
        },
        "queue": {"description": "Queue (Grid Engine) or partition (Slurm)."},
        "rings": {"type": "int", "default": 8, "description": "Rings of equal q."},
        "frameTime": {"type": "float", "default": 1, "description": "Seconds from frame to frame."},
        "beamX": {"type": "float", "description": "Column of the rings' centre; otherwise the image's middle."},
        "beamY": {"type": "float", "description": "Row of the rings' centre; otherwise the image's middle."},
    },
    "stages": {
        # On the way the file has a plain name of our own: those of raw files may not survive URLs and job scripts.
        "01-PREPARE": {
            "command": 'set -e; _raw=$(realpath -e -- "$filePath"); _stem=$(basename -- "$_raw"); _stem="${_stem%.*}"; '
            'mkdir -p -- "$outputDirectory/$id/xpcs-8id"; ln -sfn -- "$_raw" "$outputDirectory/$id/.raw.h5"; '
            'echo "SGE queue: $queue"; '
            'echo "SGE job name: xpcs_$(printf %s "$_stem" | tr -c "[:alnum:]_" _ | cut -c 1-60)"; '
            'echo "Result: $_stem.xpcs.h5"',
            "outputVariableRegexList": [
                "SGE queue: (?P<sgeQueue>.*)",
                "SGE job name: (?P<sgeJobName>.*)",
                "Result: (?P<resultName>.*)",
            ],
        },
        "02-COPY": {
            "command": "globus-url-copy -create-dest -verify-checksum -restart -rst-retries 3 "
            '"file://$outputDirectory/$id/.raw.h5" "$clusterUrl/$id/raw.h5"',
        },
        "03-METADATA": {
            "command": 'dm-process xpcs-metadata --rings "$rings" -- "$clusterDirectory/$id/raw.h5" "frame_time:$frameTime" '
            '"beam_x:$beamX" "beam_y:$beamY" "run_owner:$owner" "result_name:$resultName"',
        },
        "04-COMPUTE": {
            "command": '[ -z "$batchEnvironment" ] || . "$batchEnvironment"; cd -- "$clusterDirectory/$id" && '
            'dm-batch-run --name "$sgeJobName" ${sgeQueue:+--queue "$sgeQueue"} -- '
            '"$(command -v dm-process)" xpcs-correlate raw.h5 result.h5',
            "outputVariableRegexList": ["Job id: (?P<sgeJobId>.*)", "Job name: (?P<sgeJobName>.*)"],
        },
        "05-BACK": {
            "command": "globus-url-copy -verify-checksum -restart -rst-retries 3 "
            '"$clusterUrl/$id/result.h5" "file://$outputDirectory/$id/.result.h5" && '
            'mv -- "$outputDirectory/$id/.result.h5" "$outputDirectory/$id/xpcs-8id/$resultName"',
        },
        "90-PUBLISH": {
            "command": 'test -d "$outputDirectory/$id"',
            "runIf": "$experimentName",
            "artefacts": ["$outputDirectory/$id/**"],
        },
        "99-CLEAN": {
            "command": 'rm -rf -- "$clusterDirectory/$id"; [ -z "$experimentName" ] || [ "$jobStatus" = failed ] || '
            'rm -rf -- "$outputDirectory/$id"',
            "cleanup": True,
        },
    },
}
