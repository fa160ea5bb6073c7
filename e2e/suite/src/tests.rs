//! The table of all tests, in the order in which they run: first what needs no cluster, last what
//! takes Holdfast away.

mod access;
mod adoption;
mod artifacts;
mod chart;
mod clients;
mod copies;
mod delivery;
mod faults;
mod healing;
mod hooks;
mod install;
mod kubelet_image_gc;
mod nodes;
mod offline;
mod operator;
mod outage;
mod platforms;
mod pods;
mod policy;
mod power_cut;
mod pushes;
mod registry;
mod replicas;
mod rights;
mod scope;
mod uninstall;
mod webhook_outage;
mod workloads;

use crate::harness::{Case, ci, full};

/// Every test.
pub(crate) fn all() -> Vec<Case> {
    vec![
        // Without a cluster.
        ci!(chart::lints_and_renders_every_scenario),
        ci!(chart::documented_values_have_their_defaults),
        ci!(clients::crane_pushes_and_pulls),
        ci!(clients::skopeo_pushes_and_pulls),
        full!(clients::podman_pushes_and_pulls),
        ci!(artifacts::oras_attaches_discovers_and_copies_with_referrers),
        ci!(artifacts::regctl_copies_images_with_their_referrers),
        ci!(artifacts::helm_pushes_and_pulls_charts),
        full!(artifacts::cosign_signs_and_verifies_with_a_local_key),
        // Before Holdfast runs.
        ci!(install::wrong_values_are_refused_by_name),
        ci!(install::switched_off_nothing_exists),
        ci!(install::switching_on_by_upgrade_copies_what_already_runs),
        full!(adoption::owners_of_every_kind_from_before_start_without_the_uplink),
        full!(delivery::a_site_installed_without_its_uplink_survives_a_power_cut),
        full!(workloads::thirty_workloads_of_every_kind_boot_without_the_uplink),
        ci!(install::storage_is_claimed_as_asked_for),
        full!(clients::ctr_pushes_and_pulls),
        // A pod's way.
        ci!(pods::private_images_start_from_the_local_registry),
        ci!(pods::the_documented_command_lists_the_artifacts),
        ci!(pods::ephemeral_containers_are_rewritten),
        ci!(pods::malformed_references_are_repaired),
        full!(pods::a_manifest_applied_twenty_times_restarts_nothing),
        full!(pods::a_pod_of_another_cluster_starts_from_this_registry),
        ci!(pods::opted_out_pods_keep_their_images),
        full!(pods::image_volumes_hold_what_the_upstream_has),
        ci!(scope::kube_system_is_left_alone_but_for_three_labels),
        full!(scope::the_match_condition_can_be_changed),
        full!(scope::narrowed_sources_leave_other_registries_alone),
        full!(access::private_images_are_local_for_namespaces_that_proved_them),
        ci!(copies::each_pull_secret_is_tried),
        full!(copies::concurrent_updates_of_an_artifact_are_kept),
        ci!(copies::clients_cannot_push_under_an_upstreams_name),
        full!(copies::the_image_of_a_refused_pod_is_not_copied_and_is_forgotten),
        full!(platforms::a_node_of_another_platform_makes_its_platform_wanted),
        ci!(hooks::hooks_get_their_images),
        ci!(replicas::a_cold_herd_costs_one_request_a_blob),
        ci!(registry::untagged_manifests_harm_nothing),
        ci!(registry::an_upstream_that_only_reads_is_enough),
        // What an operator asks.
        full!(operator::preloaded_images_start_on_a_node_without_their_upstream),
        full!(operator::diff_offline_says_what_would_not_start),
        full!(operator::restore_gives_pods_their_originals_and_leaves_owners_as_they_are),
        full!(operator::status_tells_the_registry_the_volume_and_the_images),
        // When things break.
        ci!(outage::a_node_that_never_had_the_image_starts_it_without_upstream),
        ci!(outage::after_the_first_copy_no_node_asks_again),
        full!(offline::every_shape_of_a_pod_starts_on_a_node_that_never_had_it),
        full!(offline::kubectl_debug_works_without_upstream),
        ci!(faults::a_hanging_upstream_does_not_slow_cached_images),
        ci!(faults::wrong_bytes_are_never_visible),
        ci!(faults::a_pod_missed_by_the_webhook_starts_and_is_copied),
        ci!(healing::pods_that_slipped_past_the_webhook_start_without_uplink),
        ci!(healing::an_owner_that_compares_images_gets_its_originals),
        ci!(healing::a_controller_that_insists_changes_nothing),
        ci!(healing::an_image_that_only_nodes_hold_starts_while_its_upstream_is_away),
        full!(healing::an_image_that_only_nodes_could_fetch_gets_its_original_back),
        full!(healing::owned_pods_with_a_missed_image_volume_are_recreated),
        full!(delivery::what_starts_without_holdfast_starts_with_it),
        full!(delivery::images_on_nodes_start_however_their_upstream_fails),
        full!(delivery::a_pod_keeps_a_name_that_its_nodes_start),
        full!(delivery::a_host_that_only_nodes_know_is_left_to_them),
        full!(delivery::a_storage_provisioner_and_a_plug_in_start_from_their_nodes),
        full!(delivery::running_pods_come_back_after_their_pull_record_changed),
        full!(delivery::an_image_that_excluded_pods_need_stays_theirs),
        full!(policy::a_policy_that_allows_only_original_registries_breaks_no_pod),
        full!(webhook_outage::pods_churn_for_ten_minutes_without_webhook_and_uplink),
        ci!(faults::a_killed_controller_copies_nothing_twice),
        ci!(registry::a_damaged_blob_is_fetched_again),
        full!(faults::a_killed_registry_finishes_its_fills),
        full!(replicas::a_rolling_restart_fails_no_pull),
        full!(replicas::a_drained_node_fails_no_pull_elsewhere),
        full!(replicas::a_killed_replica_costs_no_more_than_retries),
        full!(replicas::a_dead_node_costs_no_more_than_retries),
        full!(replicas::a_node_cut_off_costs_no_more_than_retries),
        full!(outage::pulls_go_on_without_the_api_server),
        full!(outage::a_site_boots_without_its_uplink),
        // Nodes that come, change, and keep what they need.
        full!(nodes::own_and_sandbox_images_are_pinned_on_every_node),
        full!(kubelet_image_gc::own_images_outlive_the_kubelets_collection),
        full!(nodes::changed_files_and_a_replaced_runtime_are_repaired_or_reported),
        full!(nodes::a_node_joins_without_uplink_and_takes_no_pod_before_its_agent_pulled),
        full!(nodes::a_former_address_works_while_a_pod_names_it),
        full!(nodes::pulls_work_soon_after_the_registrys_address_changed),
        // The end.
        full!(install::uninstalling_leaves_only_the_resource_definitions),
        full!(uninstall::uninstalling_past_a_dead_node_gives_pods_their_originals),
        full!(registry::a_full_volume_refuses_writes_and_serves_reads),
        full!(pushes::an_upload_goes_on_at_another_replica),
        full!(pushes::unused_images_are_removed_and_used_ones_stay),
        full!(install::helm_3_installs_tests_and_uninstalls_past_a_dead_node),
        // What all of them had the parts ask the API server.
        ci!(rights::every_granted_verb_is_used_and_no_other),
    ]
}
