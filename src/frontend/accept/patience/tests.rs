//! What is waited for, and for how long.

use super::*;

fn timers() -> Timers {
    Timers::default()
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_late_and_an_idle_connection_is_closed() {
    let activity = Arc::new(Activity::default());
    let mut patience = Patience::new(timers(), None, true);
    let start = Instant::now();
    assert_eq!(patience.next(&activity), Some(start + timers().keep_alive));
    activity.hear();
    assert_eq!(patience.next(&activity), Some(start + timers().header));
    tokio::time::advance(timers().header).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Late));

    let request = activity.begin();
    let _ = patience.next(&activity);
    tokio::time::advance(timers().keep_alive * 2).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Wait));
    drop(request);
    let _ = patience.next(&activity);
    tokio::time::advance(timers().keep_alive).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Close));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_cut_off_unless_it_reads_a_little() {
    let activity = Arc::new(Activity::default());
    let mut patience = Patience::new(timers(), None, false);
    let _request = activity.begin();
    activity.block();
    let _ = patience.next(&activity);
    tokio::time::advance(timers().write_stall / 2).await;
    activity.wrote();
    activity.block();
    let _ = patience.next(&activity);
    tokio::time::advance(timers().write_stall / 2).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Wait));
    tokio::time::advance(timers().write_stall / 2).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Cut(_)));
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_still_leaves_is_neither_idle_nor_quiet() {
    let activity = Arc::new(Activity::default());
    let mut patience = Patience::new(timers(), None, true);
    drop(activity.begin());
    for _ in 0..100 {
        activity.wrote();
        activity.block();
        let _ = patience.next(&activity);
        tokio::time::advance(timers().write_stall / 2).await;
        assert!(matches!(patience.verdict(&activity), Verdict::Wait));
        assert!(!activity.is_quiet());
    }
    activity.wrote();
    assert!(activity.is_quiet());
    assert_eq!(patience.next(&activity), Some(Instant::now() + timers().keep_alive));
}

#[tokio::test(start_paused = true)]
async fn the_idle_time_begins_anew_after_each_request() {
    let activity = Arc::new(Activity::default());
    let mut patience = Patience::new(timers(), None, true);
    let _ = patience.next(&activity);
    tokio::time::advance(timers().keep_alive / 2).await;
    drop(activity.begin());
    let _ = patience.next(&activity);
    tokio::time::advance(timers().keep_alive / 2).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Wait));
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_says_goodbye_once_and_has_no_less_time_for_what_runs() {
    let activity = Arc::new(Activity::default());
    let mut patience = Patience::new(timers(), Some(Duration::from_secs(60)), false);
    let start = Instant::now();
    let request = activity.begin();
    assert_eq!(patience.next(&activity), Some(start + Duration::from_secs(60)));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Old));
    assert_eq!(patience.next(&activity), None, "nothing else ends what runs");
    drop(request);
    let _ = patience.next(&activity);
    tokio::time::advance(timers().keep_alive).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Close));
}

#[tokio::test(start_paused = true)]
async fn age_does_not_prolong_what_ends_anyway() {
    let activity = Arc::new(Activity::default());
    let mut patience = Patience::new(timers(), Some(Duration::from_secs(600)), false);
    let start = Instant::now();
    assert_eq!(patience.next(&activity), Some(start + timers().keep_alive));
    tokio::time::advance(timers().keep_alive).await;
    assert!(matches!(patience.verdict(&activity), Verdict::Close));
    patience.end_after(GRACE);
    assert_eq!(patience.next(&activity), Some(Instant::now() + GRACE));
}
