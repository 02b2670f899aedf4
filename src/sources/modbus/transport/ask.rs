//! Requests and their answers.

use super::super::value::Table;
use tokio_modbus::{Request, Response};

/// The properties by which answers of one unit differ: function and number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseShape {
    /// Function code.
    pub function: u8,
    /// Bytes of data.
    pub bytes: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Reads bits or registers: table, first address, number.
    Read(Table, u16, u16),
    /// Writes one bit: address, value.
    WriteCoil(u16, bool),
    /// Writes registers: first address, values.
    Write(u16, Vec<u16>),
}

impl Ask {
    /// Function code and length of the answer.
    pub fn response_shape(&self) -> ResponseShape {
        match self {
            Self::Read(table, _, count) => ResponseShape {
                function: match table {
                    Table::Coil => 1,
                    Table::Discrete => 2,
                    Table::Holding => 3,
                    Table::Input => 4,
                },
                bytes: if table.is_bits() { count.div_ceil(8) } else { count * 2 },
            },
            Self::WriteCoil(..) => ResponseShape { function: 5, bytes: 0 },
            Self::Write(_, registers) => {
                ResponseShape { function: if registers.len() == 1 { 6 } else { 16 }, bytes: 0 }
            }
        }
    }

    pub(super) fn request(&self) -> Request<'_> {
        match self {
            Self::Read(Table::Coil, address, count) => Request::ReadCoils(*address, *count),
            Self::Read(Table::Discrete, address, count) => Request::ReadDiscreteInputs(*address, *count),
            Self::Read(Table::Holding, address, count) => Request::ReadHoldingRegisters(*address, *count),
            Self::Read(Table::Input, address, count) => Request::ReadInputRegisters(*address, *count),
            Self::WriteCoil(address, on) => Request::WriteSingleCoil(*address, *on),
            Self::Write(address, registers) => match registers[..] {
                [only] => Request::WriteSingleRegister(*address, only),
                _ => Request::WriteMultipleRegisters(*address, registers.into()),
            },
        }
    }

    /// Checks an answer and returns its registers. The library has compared transaction number and function, not lengths.
    pub(super) fn answer(&self, response: Response) -> Result<Vec<u16>, String> {
        match (self, response) {
            (Self::Read(_, _, count), Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits)) => {
                if bits.len() != usize::from(count.div_ceil(8)) * 8 {
                    return Err(format!("answered {} bits to a request for {count}", bits.len()));
                }
                Ok(bits.iter().take(usize::from(*count)).map(|on| u16::from(*on)).collect())
            }
            (
                Self::Read(_, _, count),
                Response::ReadHoldingRegisters(registers) | Response::ReadInputRegisters(registers),
            ) => {
                if registers.len() != usize::from(*count) {
                    return Err(format!("answered {} registers to a request for {count}", registers.len()));
                }
                Ok(registers)
            }
            (Self::WriteCoil(address, on), Response::WriteSingleCoil(at, is)) if (*address, *on) == (at, is) => {
                Ok(vec![])
            }
            (Self::Write(address, registers), Response::WriteSingleRegister(at, word))
                if *address == at && registers[..] == [word] =>
            {
                Ok(vec![])
            }
            (Self::Write(address, registers), Response::WriteMultipleRegisters(at, count))
                if *address == at && registers.len() == usize::from(count) =>
            {
                Ok(vec![])
            }
            _ => Err("the answer does not fit the request".into()),
        }
    }
}
