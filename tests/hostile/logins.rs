//! A plant whose devices all come back at once, each with a password.

use super::siege::{check_latency, device, gateway, resident, spawn_until};
use crate::common::client::{Client, Hello};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DEVICES: usize = 500;

#[test]
fn five_hundred_devices_with_passwords_log_in_after_a_restart() {
    let Some((mut gateway, _, cgroup)) = gateway("logins", "", "passwords = \"users\"\n") else { return };
    assert!(gateway.log().contains("listening"));
    // One hash for all: making five hundred takes longer than the test.
    let file = gateway.folder.join("one");
    forebay::sources::mqtt::put_user(&file, "one", b"secret").expect("written");
    let line = std::fs::read_to_string(&file).expect("read");
    let hash = line.trim().strip_prefix("one:").expect("a hash");
    let names = (0..DEVICES).map(|number| format!("device-{number}")).chain(["device".to_owned()]);
    let users: String = names.map(|name| format!("{name}:{hash}\n")).collect();
    std::fs::write(gateway.folder.join("users"), users).expect("written");
    gateway.stop();
    gateway.run();
    let (address, pid) = (gateway.address, gateway.pid());
    let wrong = Hello { client: "device-0", login: Some(("device-0", "wrong")), ..Hello::default() };
    assert_eq!(Client::connect(address, &wrong).1[2], 0x86, "passwords are checked");
    let is_over = Arc::new(AtomicBool::new(false));
    let metadata = spawn_until(&is_over, move |is_over| device(address, Some(("device", "secret")), is_over));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut devices = tokio::task::JoinSet::new();
        for number in 0..DEVICES {
            devices.spawn(log_in(address, number));
        }
        let all = async {
            let mut streams = Vec::new();
            while let Some(stream) = devices.join_next().await {
                streams.push(stream.expect("a device"));
            }
            streams.len()
        };
        let count = tokio::time::timeout(Duration::from_secs(150), all).await.expect("all get in");
        assert_eq!(count, DEVICES);
    });
    is_over.store(true, Ordering::Relaxed);
    let latency = metadata.join().expect("the device is served");
    println!("{DEVICES} devices are logged in: {:?} bytes of memory; p99 beside them {latency:?}", resident(pid));
    check_latency(latency);
    let kills = cgroup.kills();
    assert!(kills == 0 && resident(pid).is_some(), "the kernel killed it for memory: {kills}");
}

/// Comes again until it is let in, as devices do.
async fn log_in(address: SocketAddr, number: usize) -> TcpStream {
    loop {
        let name = format!("device-{number}");
        let hello = Hello { is_v5: false, client: &name, login: Some((&name, "secret")), ..Hello::default() }.bytes();
        let mut answer = [0; 4];
        if let Ok(mut stream) = TcpStream::connect(address).await
            && stream.write_all(&hello).await.is_ok()
            && stream.read_exact(&mut answer).await.is_ok()
            && answer == [0x20, 2, 0, 0]
        {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
