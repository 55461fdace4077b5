"""Time of dense and pruned networks, measured so that the ratio can be believed.

Dense and pruned take turns in one run, on a fixed number of threads, after a warm-up; a time is a median with its
quartiles. Each is measured in every variant at hand (eager, compiled, onnxruntime, OpenVINO, frozen;
float32, bfloat16), and a speed-up is against the fastest dense variant. Beside a time stands what a large copy and a
large matrix product of this device would take for the same bytes and sums.

May use: data, extraction, frozen, method, models, runs.
"""
