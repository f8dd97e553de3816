//! What prewarm relies on, each written once.

mod answering;
mod consuming;
mod publishing;
mod restarting;

use std::pin::Pin;

use crate::session::Session;

/// One of them.
pub type Scenario = fn(Session) -> Pin<Box<dyn Future<Output = ()>>>;

/// A table of scenarios by their functions' names.
macro_rules! scenarios {
    ($($module:ident::$name:ident),+ $(,)?) => {
        [$((stringify!($name), |mut session| {
            Box::pin(async move { $module::$name(&mut session).await })
        })),+]
    };
}

/// They run side by side.
pub const SCENARIOS: [(&str, Scenario); 33] = scenarios![
    publishing::a_publish_expects_the_last_sequence_of_its_subject,
    publishing::a_known_id_is_answered_and_not_stored,
    publishing::an_id_is_known_although_its_message_is_gone,
    publishing::an_id_is_forgotten_after_the_window,
    publishing::a_new_message_replaces_the_one_of_its_subject,
    publishing::a_purge_takes_what_is_under_its_filter,
    publishing::a_purge_with_a_sequence_leaves_what_is_newer,
    publishing::the_newest_of_each_subject_comes_in_order_of_sequence,
    publishing::a_key_is_written_by_compare_and_set,
    publishing::a_marker_stays_until_it_is_purged,
    consuming::messages_come_in_order_and_only_those_filtered,
    consuming::a_consumer_begins_at_its_sequence,
    consuming::a_consumer_begins_behind_the_newest_message,
    consuming::requests_take_turns,
    consuming::a_request_ends_with_what_did_not_come,
    consuming::without_a_consumer_nobody_answers,
    consuming::who_waits_at_a_deleted_consumer_is_told,
    consuming::a_dropped_request_gets_nothing,
    consuming::a_consumer_made_anew_has_forgotten,
    consuming::a_purged_message_is_not_delivered_again,
    consuming::a_replaced_message_gives_way_to_the_new_one,
    consuming::requests_are_delivered_strictly_one_by_one,
    consuming::a_work_queue_keeps_what_is_not_acked,
    answering::an_acked_message_does_not_come_again,
    answering::an_ack_of_what_was_never_delivered_changes_nothing,
    answering::a_late_ack_counts,
    answering::a_nack_brings_the_message_again_at_once,
    answering::a_nack_with_delay_brings_it_later,
    answering::what_is_due_again_comes_before_what_is_new,
    answering::a_word_of_progress_restarts_the_ack_wait,
    answering::only_an_ack_or_a_delay_holds_back_what_is_due,
    answering::what_is_removed_by_its_sequence_does_not_come_again,
    answering::what_is_due_again_and_removed_does_not_come,
];

/// They stop the server that the others share, so they run alone.
pub const WITH_RESTART: [(&str, Scenario); 2] = scenarios![
    restarting::a_memory_consumer_goes_and_the_stream_stays,
    restarting::the_consumer_of_requests_goes_on,
];
