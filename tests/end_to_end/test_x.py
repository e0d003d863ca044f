from concurrent.futures import ThreadPoolExecutor
from itertools import *
from tests.end_to_end.conftest import *
from tests.end_to_end.gpus import *
from tests.end_to_end.talk import *
import datetime, json
from tests.stand_in_launcher import read_events
def test_x(start_machine):
    sizes_mib = {"a": 740, "b": 760, "c": 780, "d": 800, "e": 870}
    machine = start_machine(
        {"GPU-a": ROOM_FOR_TWO_MIB, "GPU-b": ROOM_FOR_ONE_MIB},
        {name: takes(mib, load_s=0.05) for name, mib in sizes_mib.items()},
        driver=("late=150", "hidden"),environment={"LOG_FORMAT":"json"}
    )
    try:
      with ThreadPoolExecutor(8) as clients:
        asked = islice(cycle("abacedbdce"), 40)
        answers = list(clients.map(lambda model: machine.corral.ask(CHAT, chat(model)), asked))
    finally:
        ls=[]
        for e in read_events(machine._journal):
            if e['event'] in ('start','sigterm','out_of_memory'): ls.append((datetime.datetime.utcfromtimestamp(e['time']).isoformat()[11:23], e['event'],e['alias'],e.get('env',{}).get('CUDA_VISIBLE_DEVICES')))
        for l in machine.corral.log_text.splitlines():
            if l[0:1]=='{': d=json.loads(l); ls.append((d['time'][11:23],d['message']))
        for l in sorted(ls): print(*l)
    assert 0
