//! Simulated Modbus machines: an energy meter and a press, each a Modbus/TCP server on loopback.

use crate::clock;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_modbus::server::Service;
use tokio_modbus::server::tcp::{Server, accept_tcp_connection};
use tokio_modbus::{ExceptionCode, Request, Response};

/// The two machines; dropping this stops their servers.
pub(super) struct Machines {
    pub(super) meter: SocketAddr,
    pub(super) press: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Starts the servers of both machines.
pub(super) async fn start() -> std::io::Result<Machines> {
    let started = clock::instant();
    let mut tasks = Vec::new();
    let mut serve = async |kind: MachineKind| -> std::io::Result<SocketAddr> {
        let socket = TcpListener::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?;
        let machine = Machine { kind, started };
        tasks.push(tokio::spawn(async move {
            let connected = async |stream, peer| accept_tcp_connection(stream, peer, |_| Ok(Some(machine)));
            // The server ends with the demo; the gateway reconnects after an error.
            let _ = Server::new(socket).serve(&connected, |_| ()).await;
        }));
        Ok(address)
    };
    let (meter, press) = (serve(MachineKind::Meter).await?, serve(MachineKind::Press).await?);
    Ok(Machines { meter, press, tasks })
}

#[derive(Clone, Copy)]
enum MachineKind {
    Meter,
    Press,
}

#[derive(Clone, Copy)]
struct Machine {
    kind: MachineKind,
    started: Instant,
}

impl Machine {
    /// Returns the current content of all registers.
    fn registers(&self) -> Vec<u16> {
        let seconds = clock::instant().duration_since(self.started).as_secs_f64();
        match self.kind {
            MachineKind::Meter => {
                // Register map of `config/devices/eastron-sdm630.toml`.
                let mut registers = vec![0; 80];
                let mut put = |address: usize, value: f64| {
                    let bits = (value as f32).to_bits();
                    (registers[address], registers[address + 1]) = ((bits >> 16) as u16, bits as u16);
                };
                let watts = 7_500.0 + 900.0 * (seconds / 7.0).sin();
                for phase in 0..3 {
                    put(phase * 2, 230.0 + (seconds / 11.0 + phase as f64).sin());
                    put(6 + phase * 2, watts / 3.0 / 230.0);
                }
                put(52, watts);
                put(70, 50.0);
                put(72, 1_000.0 + 7_500.0 * seconds / 3_600_000.0);
                registers
            }
            MachineKind::Press => {
                // Register map of `config/devices/machine-plc.toml`.
                let mut registers = vec![0; 32];
                let phase = seconds as u64 % 30;
                let state = match phase {
                    0..=2 => 1,
                    3..=4 => 2,
                    29 => 4,
                    _ => 3,
                };
                registers[0] = state;
                registers[1] = u16::from(phase == 29) | u16::from(phase == 4) << 1;
                let name = b"P-4711\0\0";
                for (index, pair) in name.chunks_exact(2).enumerate() {
                    registers[2 + index] = u16::from_be_bytes([pair[0], pair[1]]);
                }
                // Starts near its maximum to show the overflow.
                registers[10] = (65_500 + (seconds * 2.0) as u64) as u16;
                registers[11] = (seconds / 13.0) as u16;
                registers[20] = (412.0 + 40.0 * (seconds / 20.0).sin()) as u16;
                registers[21] = (620.0 + 15.0 * (seconds / 3.0).sin()) as u16;
                registers
            }
        }
    }
}

impl Service for Machine {
    type Request = Request<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Response, ExceptionCode>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        let registers = self.registers();
        let range = |address: u16, count: u16| {
            let (from, to) = (usize::from(address), usize::from(address) + usize::from(count));
            registers.get(from..to).map(<[u16]>::to_vec).ok_or(ExceptionCode::IllegalDataAddress)
        };
        ready(match (request, self.kind) {
            (Request::ReadInputRegisters(address, count), MachineKind::Meter) => {
                range(address, count).map(Response::ReadInputRegisters)
            }
            (Request::ReadHoldingRegisters(address, count), MachineKind::Press) => {
                range(address, count).map(Response::ReadHoldingRegisters)
            }
            _ => Err(ExceptionCode::IllegalFunction),
        })
    }
}
