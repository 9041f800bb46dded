"""A new NWB session for a recording that is not NWB: who, when and where, without the raw data."""

from datetime import UTC, datetime
from uuid import uuid4

from pynwb import NWBFile
from pynwb.file import Subject

from accm_core.io.spikeinterface import SpikeInterfaceRecording

UNKNOWN = "unknown"
NO_SPECIES = "http://purl.obolibrary.org/obo/NCBITaxon_32644"  # "unidentified"


def make_session(source: SpikeInterfaceRecording) -> NWBFile:
    """Make a session with the electrodes of a recording, to which units can be added.

    Notes
    -----
    What the recording does not tell (subject, brain area) is said to be unknown. Its raw data are not copied:
    they stay where they are, in their own format.
    """
    nwbfile = NWBFile(
        session_description=f"units sorted from {source.series_path} of {source.source_name}",
        experiment_description=UNKNOWN,
        identifier=str(uuid4()),
        session_start_time=source.start_time or datetime.now(UTC),
        subject=Subject(subject_id=UNKNOWN, species=NO_SPECIES, sex="U", age="P0D/"),
        keywords=["extracellular electrophysiology", "spike sorting"],
    )
    device = nwbfile.create_device(
        name="probe", description=f"{source.num_channels} channels that were sorted"
    )
    groups = {
        name: nwbfile.create_electrode_group(
            name=f"shank{name}" if name.isdecimal() else name.replace("/", "_"),
            description=f"channels of group {name}",
            location=UNKNOWN,
            device=device,
        )
        for name in dict.fromkeys(source.group_names)
    }
    nwbfile.add_electrode_column("channel_name", "name of the channel")
    if source.has_geometry:
        nwbfile.add_electrode_column("rel_x", "position across the probe (µm)")
        nwbfile.add_electrode_column("rel_y", "position along the probe (µm)")
    for k, name in enumerate(source.channel_ids):
        x, y = (float(value) for value in source.channel_locations[k])
        position = {"rel_x": x, "rel_y": y} if source.has_geometry else {}
        group = groups[source.group_names[k]]
        nwbfile.add_electrode(location=UNKNOWN, group=group, channel_name=name, **position)
    return nwbfile
