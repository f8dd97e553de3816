//! Processes and waiting.

use std::process::Command;
use std::time::Duration;

use crate::support::parts;
use crate::support::process::Process;
use crate::support::wait::{eventually, within};

const LIMIT: Duration = Duration::from_secs(60);

fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_dropped_process_is_gone_and_its_output_can_be_read_before() {
    let dir = parts::temp_dir();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo out; echo err >&2; exec tail -f /dev/null"]);
    let process = Process::spawn("sh", &mut command, &dir.path().join("log"), dir.path());
    eventually("both lines in the log", LIMIT, async || {
        process.log() == "out\nerr\n"
    })
    .await;
    let pid = process.pid();
    assert!(is_alive(pid));
    drop(process);
    assert!(!is_alive(pid));
    assert!(dir.path().exists());
}

#[tokio::test]
async fn a_process_ends_with_its_test_process() {
    // Another run of this test program stands for a test process that is killed.
    if let Some(data) = std::env::var_os("PREWARM_TEST_LEFT_BEHIND") {
        let data = std::path::PathBuf::from(data);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec tail -f /dev/null"]);
        let process = Process::spawn("sh", &mut command, &data.with_extension("log"), &data);
        std::fs::write(data.with_extension("pid"), process.pid().to_string()).unwrap();
        std::future::pending::<()>().await;
    }
    let dir = parts::temp_dir();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut other = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::a_process_ends_with_its_test_process"])
        .env("PREWARM_TEST_LEFT_BEHIND", &data)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = eventually(
        "the other test process to start its child",
        LIMIT,
        async || {
            std::fs::read_to_string(data.with_extension("pid"))
                .ok()
                .and_then(|pid| pid.parse().ok())
        },
    )
    .await;
    assert!(is_alive(pid));
    other.kill().await.unwrap();
    eventually("its child to be killed", LIMIT, async || !is_alive(pid)).await;
    eventually("its data to be removed", LIMIT, async || !data.exists()).await;
}

#[tokio::test]
#[should_panic(expected = "waited 50ms for a sign; saw last: \"fog\"")]
async fn a_wait_that_ends_in_vain_says_what_it_saw() {
    eventually("a sign", Duration::from_millis(50), async || {
        Err::<(), _>("fog")
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "waited 50ms for an answer")]
async fn a_future_that_takes_too_long_says_what_it_was_for() {
    within(
        Duration::from_millis(50),
        "an answer",
        std::future::pending::<()>(),
    )
    .await;
}
