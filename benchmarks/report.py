from pathlib import Path
def write(session, folder): ...
def show(session, console):
    for w,d in session.rows():
        for c in session.contestants():
            print(w,d,c,session.values(w,d,c),session.fault(w,d,c), (session.counted(w,d,c).counts if session.counted(w,d,c) else None))
