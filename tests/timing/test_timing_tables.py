"""Speed-ups, as tables make them of a record by hand."""

import pytest
from timed import on, record

from psp.report.timing_tables import machines_table, on_all_devices, speed_ups, summary_table, unavailable_table
from psp.timing.settings import NO_GPU


def test_a_speed_up_is_against_the_fastest_dense_variant():
    table = speed_ups(record()).set_index("precision")
    assert table["speed_up"].to_dict() == pytest.approx({"float32": 3.0, "bfloat16": 1.6, "any": 2.0})
    assert table["realised"].to_dict() == pytest.approx({"float32": 0.75, "bfloat16": 0.4, "any": 0.5})
    row = table.loc["any"]
    assert (row["dense_variant"], row["extracted_variant"]) == ("compile, bfloat16", "eager, float32")
    assert (row["dense_ms"], row["extracted_ms"]) == pytest.approx((4.0, 2.0))
    assert row["extracted_iqr_ms"] == pytest.approx(0.6)
    assert (row["dense_at_copy_speed_ms"], row["extracted_at_copy_speed_ms"]) == pytest.approx((0.5, 1.0))
    assert row["extracted_at_matmul_speed_ms"] == pytest.approx(0.2)


def test_without_a_gpu_the_table_says_so():
    table = summary_table(record(), {"kind": "cuda", "unavailable": NO_GPU}, 64)
    assert table.loc[0, ["gpu_speed_up", "gpu_realised"]].tolist() == [NO_GPU, NO_GPU]
    assert table.loc[0, "cpu_speed_up"] == pytest.approx(2.0)
    assert table.loc[0, "mac_reduction"] == pytest.approx(4.0)
    faster = record()
    faster["networks"][0]["timings"][3]["median_s"] = 0.001
    assert summary_table(record(), faster, 64).loc[0, "gpu_speed_up"] == pytest.approx(4.0)


def test_machines_stand_side_by_side_with_the_networks_of_the_first():
    other = on("B", 0.001)
    other["networks"].append({**other["networks"][0], "name": "only here"})
    table = machines_table([on("A"), other], 64).set_index("precision")
    assert table["name"].unique().tolist() == ["n"]
    assert table.loc["any", ["speed_up, A", "speed_up, B"]].tolist() == pytest.approx([2.0, 4.0])
    assert table.loc["any", ["realised, A", "realised, B"]].tolist() == pytest.approx([0.5, 1.0])
    other["networks"][0]["masks_sha256"] = "of other masks"
    alone = machines_table([on("A"), other], 64)
    assert alone.equals(machines_table([on("A")], 64)), "of the same name, but not the same network"
    other["networks"][0] |= {"masks_sha256": on("A")["networks"][0].get("masks_sha256"), "nonzero_macs": 99}
    assert machines_table([on("A"), other], 64).equals(alone), "of other random masks"


def test_all_devices_stand_in_one_table():
    table = on_all_devices([on("A"), on("B", 0.001)])
    assert table.columns[-1] == "device"
    fastest = table[table["precision"] == "any"].set_index("device")["speed_up"]
    assert fastest.to_dict() == pytest.approx({"A": 2.0, "B": 4.0})


def test_what_is_missing_is_said_of_dense_networks_and_of_single_ones():
    one = on("A")
    missing = {"backend": "compile", "precision": "float32", "reason": "no compiler"}
    everywhere = [{**missing, "batch": batch} for batch in (1, 64)]
    first = {**one["networks"][0], "batches": [1, 64], "dense_unavailable": everywhere}
    one["networks"] = [first, {**first, "name": "m", "unavailable": everywhere[1:]}]
    assert unavailable_table([one]).to_numpy().tolist() == [
        ["A", "dense", "compile", "float32", "no compiler", "all"],
        ["A", "extracted", "compile", "float32", "no compiler", "m at batch 64"],
    ]
    assert unavailable_table([]).empty
