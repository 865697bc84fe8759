"""What kind of GPU is simulated: the facts in which one model differs from another.

Sources: the vendors' data sheets (A100 80GB SXM, H100 SXM5, H200, HGX B200, Instinct MI300X) for memory, power, link count and
rate, PCIe and the greatest clock; frame-buffer size as the driver shows it. Idle power, idle clock and temperature limits are in no data
sheet: they are of the size that tools show on such machines, good to within some ten percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from switchgear.core.errors import Invalid, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """name: as the flag takes it. model: as the driver would call it, behind "Simulated".

    links: NVLink or XGMI links; link_bytes_per_s: of one link, in one direction. nvlink: its generation, 0 for AMD's XGMI.
    gpm: whether the driver has utilisation of the units inside (NVIDIA from Hopper on). clock_step_mhz: the clocks' grain.
    slowdown_c: temperature at which the hardware slows itself down.
    """

    name: str
    vendor: str
    model: str
    memory_mib: int
    reserved_mib: int
    power_max_w: float
    power_idle_w: float
    clock_max_mhz: int
    clock_idle_mhz: int
    clock_step_mhz: int
    memory_clock_mhz: int
    slowdown_c: int
    links: int
    link_bytes_per_s: float
    nvlink: int
    pcie_generation: int
    gpm: bool

    @property
    def is_amd(self) -> bool:
        return self.vendor == "AMD"


_ALL = (
    Profile(
        name="A100",
        vendor="NVIDIA",
        model="NVIDIA A100-SXM4-80GB",
        memory_mib=81_920,
        reserved_mib=604,
        power_max_w=400,
        power_idle_w=58,
        clock_max_mhz=1_410,
        clock_idle_mhz=210,
        clock_step_mhz=15,
        memory_clock_mhz=1_593,
        slowdown_c=89,
        links=12,
        link_bytes_per_s=25e9,
        nvlink=3,
        pcie_generation=4,
        gpm=False,
    ),
    Profile(
        name="H100",
        vendor="NVIDIA",
        model="NVIDIA H100 80GB HBM3",
        memory_mib=81_559,
        reserved_mib=551,
        power_max_w=700,
        power_idle_w=71,
        clock_max_mhz=1_980,
        clock_idle_mhz=345,
        clock_step_mhz=15,
        memory_clock_mhz=2_619,
        slowdown_c=87,
        links=18,
        link_bytes_per_s=25e9,
        nvlink=4,
        pcie_generation=5,
        gpm=True,
    ),
    Profile(
        name="H200",
        vendor="NVIDIA",
        model="NVIDIA H200",
        memory_mib=143_771,
        reserved_mib=608,
        power_max_w=700,
        power_idle_w=76,
        clock_max_mhz=1_980,
        clock_idle_mhz=345,
        clock_step_mhz=15,
        memory_clock_mhz=3_201,
        slowdown_c=87,
        links=18,
        link_bytes_per_s=25e9,
        nvlink=4,
        pcie_generation=5,
        gpm=True,
    ),
    Profile(
        name="B200",
        vendor="NVIDIA",
        model="NVIDIA B200",
        memory_mib=183_359,
        reserved_mib=712,
        power_max_w=1_000,
        power_idle_w=145,
        clock_max_mhz=1_965,
        clock_idle_mhz=120,
        clock_step_mhz=15,
        memory_clock_mhz=3_996,
        slowdown_c=88,
        links=18,
        link_bytes_per_s=50e9,
        nvlink=5,
        pcie_generation=5,
        gpm=True,
    ),
    Profile(
        name="MI300X",
        vendor="AMD",
        model="AMD Instinct MI300X",
        memory_mib=196_592,
        reserved_mib=0,
        power_max_w=750,
        power_idle_w=140,
        clock_max_mhz=2_100,
        clock_idle_mhz=132,
        clock_step_mhz=1,
        memory_clock_mhz=1_300,
        slowdown_c=100,
        links=7,
        link_bytes_per_s=64e9,
        nvlink=0,
        pcie_generation=5,
        gpm=False,
    ),
)
PROFILES = {profile.name: profile for profile in _ALL}
DEFAULT = "H100"
#: As many as the largest nodes have.
GPUS_MAX = 16


def profile(name: str) -> Profile:
    """The profile called `name`, in any case. Raises Invalid when there is none."""
    try:
        return PROFILES[name.upper()]
    except KeyError:
        known = ", ".join(PROFILES)
        raise Invalid(
            f"no GPU profile is called {name}; use one of {known}", Reason.BAD_FIELD, field="profile"
        ) from None
