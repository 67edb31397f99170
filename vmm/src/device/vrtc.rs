//! TEMPORARY
#![allow(missing_docs, clippy::all)]
use super::Refused;
pub struct Vrtc;
impl Vrtc {
    pub const PORTS: [u16; 2] = [0x70, 0x71];
    pub fn new(_: u64) -> Vrtc {
        Vrtc
    }
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }
    pub fn advance(&mut self, _: u64) -> bool {
        false
    }
    pub fn read(&mut self, _: u16, _: u64) -> Result<u8, Refused> {
        Ok(0)
    }
    pub fn write(&mut self, _: u16, _: u8, _: u64) -> Result<(), Refused> {
        Ok(())
    }
    pub fn nvram_read(&self, _: i32, _: u64) -> Result<u8, Refused> {
        Ok(0)
    }
    pub fn nvram_write(&mut self, _: i32, _: u8) -> Result<(), Refused> {
        Ok(())
    }
    pub fn set_time(&mut self, _: i64, _: u64) -> Result<(), Refused> {
        Ok(())
    }
    pub fn get_time(&self, _: u64) -> i64 {
        0
    }
}
