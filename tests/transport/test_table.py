"""docs/network.md, "When something goes wrong": behind every row stand tests, and every row here stands there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "network.md"

# The beginning of a row, and the tests that it rests on: file (under tests/) and function.
ROWS = {
    "a client is killed": [
        "transport/test_faults.py::test_a_client_killed_in_a_round_and_restarted_changes_nothing",
        "transport/test_kept_answers.py::test_a_client_that_was_killed_with_its_answer_made_does_not_train_again",
        "transport/test_flare.py::test_kill_9_of_real_processes_changes_nothing",
        "transport/test_real_matrix.py::test_a_killed_client_a_killed_server_and_a_cut_change_nothing",
    ],
    "it stays away": ["transport/test_faults.py::test_a_client_that_stays_away_does_not_stop_the_others"],
    "it hangs, or is too slow": [
        "transport/test_faults.py::test_a_client_that_hangs_misses_rounds_and_its_late_answer_is_dropped"
    ],
    "too few answer": [
        "transport/test_faults.py::test_a_round_without_a_quorum_is_held_again_from_where_everybody_stood",
        "transport/test_faults.py::test_a_quorum_that_never_comes_ends_with_the_reason",
    ],
    "a client comes late": ["transport/test_faults.py::test_a_late_client_joins_a_running_federation"],
    "the server is killed": [
        "transport/test_faults.py::test_the_server_killed_and_started_again_changes_nothing",
        "transport/test_kept_answers.py::test_after_a_kill_of_the_server_in_mid_round_no_update_is_computed_again",
        "transport/test_kept_answers.py::test_rounds_of_several_exchanges_are_begun_again",
        "transport/test_client_loop.py::test_a_client_does_not_wait_for_ever",
    ],
    "the server ends with an error": [
        "transport/test_faults.py::test_clients_that_do_not_fit_together_are_told_so_and_end",
        "transport/test_faults.py::test_clients_that_do_not_fit_without_one_that_is_away_wait_for_it",
        "transport/test_faults.py::test_settings_that_cannot_be_are_an_event_and_told_to_clients_that_are_about_to_connect",
        "transport/test_faults.py::test_a_quorum_that_never_comes_ends_with_the_reason",
        "transport/test_client_loop.py::test_a_server_that_may_come_back_is_waited_for_and_the_reason_is_said_once_for_this_process",
    ],
    "the connection is cut in the middle": [
        "transport/test_flare.py::test_letters_travel_encrypted_and_outlive_a_cut",
        "transport/test_faults.py::test_a_short_cut_of_the_connection_changes_nothing",
    ],
    "the line breaks without a word": [
        "transport/test_silent_connections.py::test_what_the_server_sent_into_a_silent_connection_is_told_when_the_client_connects_again",
        "transport/test_silent_connections.py::test_a_client_leaves_a_silent_connection",
    ],
    "the connection is cut for minutes": [
        "transport/test_kept_answers.py::test_a_cut_of_minutes_loses_no_work",
        "transport/test_faults.py::test_a_long_cut_is_outlived",
    ],
    "a client's disk is full": ["transport/test_faults.py::test_a_full_disk_ends_the_client_and_nothing_else"],
    "a client lost `KIT/state`": ["transport/test_faults.py::test_a_client_that_lost_its_state_joins_anew"],
    "a client sends a malformed": [
        "test_hostile.py::test_a_bad_update_excludes_its_client_and_the_others_go_on",
        "test_hostile.py::test_what_a_client_says_of_itself_cannot_stop_the_server",
    ],
    "two processes use one kit": [
        "deployment/test_status.py::test_one_process_at_a_time_works_on_a_kit",
        "transport/test_takeover.py::test_none_of_five_hundred_schedules_stalls",
        "transport/test_takeover.py::test_a_copied_kit_takes_over_and_nobody_waits",
    ],
    "a kit of another federation": [
        "transport/test_faults.py::test_a_kit_of_another_federation_is_refused_on_both_sides",
        "transport/test_faults.py::test_a_client_of_another_run_is_refused_on_both_sides",
    ],
    "a kit of another authority": [
        "transport/test_flare.py::test_who_has_no_certificate_of_the_federation_is_not_let_in",
        "transport/test_flare.py::test_a_kit_of_another_authority_is_told_on_both_sides_and_the_client_gives_up",
        "deployment/test_kits.py::test_a_sentence_is_told_once_a_minute_and_a_client_that_is_refused_all_the_time_gives_up",
        "transport/test_guard.py::test_of_endless_refusals_few_are_written_down",
    ],
    "the kits of a client and of the server hold different": [
        "transport/test_agreed.py::test_a_client_whose_kit_holds_other_settings_is_refused_on_both_sides"
    ],
    "another version of h2tune": [
        "transport/test_faults.py::test_a_client_of_another_version_is_refused_on_both_sides",
        "transport/test_keeping_it_running.py::test_server_and_clients_are_upgraded_one_after_the_other",
    ],
    "a finished client is started again": [
        "transport/test_kept_answers.py::test_a_finished_client_started_again_says_so"
    ],
    "a client returns after the end": [
        "transport/test_farewell.py::test_a_client_that_returns_after_the_end_is_told_so",
        "transport/test_farewell.py::test_a_server_started_again_tells_who_was_away_at_the_end",
    ],
    "a client does not reach the server": ["transport/test_client_loop.py::test_a_client_does_not_wait_for_ever"],
    "a certificate expires": [
        "transport/test_flare.py::test_an_expired_certificate_says_when_and_what_to_do",
        "transport/test_keeping_it_running.py::test_an_end_that_is_near_is_said_at_every_start",
    ],
    "an organisation must leave": [
        "transport/test_revocation.py::test_an_update_of_the_round_in_which_its_client_is_revoked_does_not_count",
        "transport/test_revocation.py::test_a_connected_client_that_is_revoked_is_out_within_ten_seconds_and_stays_out",
        "transport/test_revocation.py::test_a_client_that_is_revoked_while_it_reconnects_is_told_when_it_is_back",
        "transport/test_guard.py::test_an_error_in_the_guard_is_said_once_and_the_revocation_is_carried_out_all_the_same",
        "transport/test_guard.py::test_the_connection_of_who_is_revoked_is_closed_whatever_fails",
        "transport/test_guard.py::test_a_list_that_is_gone_stays_in_force_and_an_empty_one_does_not",
    ],
    "`--revoke` names nobody": ["transport/test_revocation.py::test_an_unknown_name_is_refused_with_the_nearest_one"],
    "a kit was renewed": [
        "transport/test_revocation.py::test_a_renewed_certificate_cuts_off_the_old_one_and_the_new_kit_takes_part"
    ],
    "two servers use one kit": [
        "deployment/test_status.py::test_one_process_at_a_time_works_on_a_kit",
        "transport/test_flare.py::test_a_second_server_with_the_same_kit_finds_the_port_taken",
    ],
    "a kit is older or newer": [
        "deployment/test_kits.py::test_a_kit_from_a_newer_version_says_update_and_an_older_one_works"
    ],
    "a machine's clock jumps": [
        "transport/test_keeping_it_running.py::test_a_clock_that_jumps_an_hour_changes_nothing",
        "transport/test_keeping_it_running.py::test_clocks_of_the_engine_that_jump_an_hour_change_nothing",
    ],
    "a proxy or firewall closes": ["transport/test_flare.py::test_a_proxy_that_closes_idle_connections_closes_none"],
}  # fmt: skip


def rows_of_the_page() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition("## When something goes wrong")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [line[2:].partition(" | ")[0] for line in lines[1:]]  # without the heading


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((HERE.parent / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_table_and_the_tests_name_the_same_rows() -> None:
    found = rows_of_the_page()
    assert len(found) == len(ROWS)
    for row, begins in zip(found, ROWS, strict=True):
        assert row.startswith(begins), f"{row!r} does not begin with {begins!r}"


@pytest.mark.parametrize("row", ROWS)
def test_the_tests_behind_a_row_are_there(row: str) -> None:
    assert ROWS[row]
    for name in ROWS[row]:
        file, _, function = name.partition("::")
        assert function in functions(file), name
