"""GPUs that are not there: the double of ``cuda.bindings.driver``, for tests and for a first try.

It has the functions that `parnet_deploy.runtime.cuda.device` calls, with their names, arguments and
results; a test compares them with the real module. It keeps the rules that the driver keeps, and
answers with the driver's errors: what may be recorded and what may not, that recorded streams join,
which context a handle belongs to, who reaches whose memory. Where the driver would go on with
garbage, a race or a wait without end, it raises `MisuseError`. Its clock is simulated: times are
those of work that really waits for what it is told to.

Reference: https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

# ruff: noqa: N802, N803  # functions and arguments have the driver's names

from __future__ import annotations

import ctypes
import threading

from parnet_deploy.runtime.simulated.handles import (
    Context,
    CUevent_flags,
    CUresult,
    CUstream_flags,
    CUstreamCaptureMode,
    RefusedError,
    SimulatedEvent,
    SimulatedGraph,
    SimulatedStream,
)
from parnet_deploy.runtime.simulated.machine import Machine, answered, need
from parnet_deploy.runtime.simulated.work import Action, MisuseError, Node, Recording, Work


class SimulatedDriver(Machine):
    """The driver's functions. What a test sets up and asks is in `Machine`."""

    CUresult = CUresult
    CUstream_flags = CUstream_flags
    CUevent_flags = CUevent_flags
    CUstreamCaptureMode = CUstreamCaptureMode
    CU_MEMHOSTALLOC_PORTABLE = 1

    # -- devices and contexts

    @answered
    def cuInit(self, Flags: int) -> None:
        """Start."""
        need(bool(self._contexts), CUresult.CUDA_ERROR_NO_DEVICE)

    @answered
    def cuDeviceGet(self, ordinal: int) -> int:
        """A GPU by its number."""
        need(0 <= ordinal < len(self._contexts), CUresult.CUDA_ERROR_INVALID_DEVICE)
        return ordinal

    @answered
    def cuDevicePrimaryCtxRetain(self, dev: int) -> Context:
        """Its context, which is there as long as somebody uses it."""
        self._contexts[dev].retained += 1
        return self._contexts[dev]

    @answered
    def cuDevicePrimaryCtxRelease(self, dev: int) -> None:
        """Use it no more."""
        context = self._contexts[dev]
        need(context.retained > 0, CUresult.CUDA_ERROR_INVALID_CONTEXT)
        context.retained -= 1
        if not context.retained:
            context.reaches.clear()

    @answered
    def cuCtxSetCurrent(self, ctx: Context) -> None:
        """Make it the calling thread's."""
        need(ctx.retained > 0, CUresult.CUDA_ERROR_INVALID_CONTEXT)
        need(not ctx.lost, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
        self._current.context = ctx

    @answered
    def cuDeviceCanAccessPeer(self, dev: int, peerDev: int) -> int:
        """Whether one GPU can use the memory of another one."""
        return int(self._peers and dev != peerDev)

    @answered
    def cuCtxEnablePeerAccess(self, peerContext: Context, Flags: int) -> None:
        """Let the current context use the memory of another one."""
        context = self._context
        need(self._peers, CUresult.CUDA_ERROR_PEER_ACCESS_UNSUPPORTED)
        need(context is not peerContext, CUresult.CUDA_ERROR_INVALID_CONTEXT)
        known = peerContext.number in context.reaches
        need(not known, CUresult.CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)
        context.reaches.add(peerContext.number)

    # -- memory

    @answered
    def cuMemAlloc(self, bytesize: int) -> int:
        """Memory of the current GPU."""
        self._check_not_recording()
        need(bytesize > 0, CUresult.CUDA_ERROR_INVALID_VALUE)
        return self.memory.allocate(bytesize, self._context.number - 1).address

    @answered
    def cuMemFree(self, dptr: int) -> None:
        """Give memory of a GPU back."""
        self._check_not_recording()
        self.memory.free(dptr)

    @answered
    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> int:
        """Page-locked memory of the host."""
        self._check_not_recording()
        need(bytesize > 0, CUresult.CUDA_ERROR_INVALID_VALUE)
        if Flags != self.CU_MEMHOSTALLOC_PORTABLE and len(self._contexts) > 1:
            raise MisuseError("without PORTABLE it is page-locked for one GPU only")
        return self.memory.allocate(bytesize, None).address

    @answered
    def cuMemFreeHost(self, p: int) -> None:
        """Give memory of the host back."""
        self._check_not_recording()
        self.memory.free(p)

    @answered
    def cuMemcpyDtoH(self, dstHost: int, srcDevice: int, ByteCount: int) -> None:
        """Copy to the host, which waits for nobody."""
        block = self.memory.at(srcDevice, ByteCount)
        if block.writer is None or not block.writer.settled:
            raise MisuseError(f"{block} is read, and nobody waited for what writes it")
        ctypes.memmove(dstHost, int(block.data.ctypes.data), ByteCount)

    @answered
    def cuMemcpyHtoDAsync(
        self, dstDevice: int, srcHost: int, ByteCount: int, hStream: SimulatedStream
    ) -> None:
        """Put a copy from the host on a stream."""
        self._copy("upload", dstDevice, srcHost, ByteCount, hStream)

    @answered
    def cuMemcpyDtoHAsync(
        self, dstHost: int, srcDevice: int, ByteCount: int, hStream: SimulatedStream
    ) -> None:
        """Put a copy to the host on a stream."""
        self._copy("download", dstHost, srcDevice, ByteCount, hStream)

    @answered
    def cuMemcpyPeerAsync(
        self,
        dstDevice: int,
        dstContext: Context,
        srcDevice: int,
        srcContext: Context,
        ByteCount: int,
        hStream: SimulatedStream,
    ) -> None:
        """Put a copy from GPU to GPU on a stream, which no recording can hold."""
        for address, context in ((dstDevice, dstContext), (srcDevice, srcContext)):
            if self.memory.at(address, ByteCount).device != context.number - 1:
                raise MisuseError(f"{address:#x} is not memory of cuda:{context.number - 1}")
        if hStream.recording is not None:
            hStream.recording.valid = False
            raise RefusedError(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        self._copy("send", dstDevice, srcDevice, ByteCount, hStream)

    # -- streams

    @answered
    def cuStreamCreate(self, Flags: int) -> SimulatedStream:
        """A stream of the current context."""
        if Flags != CUstream_flags.CU_STREAM_NON_BLOCKING:
            raise MisuseError("another stream would wait for the default one")
        return self._made(SimulatedStream(kind="stream", context=self._context))

    @answered
    def cuStreamDestroy(self, hStream: SimulatedStream) -> None:
        """Free a stream."""
        self._unmade(hStream)

    @answered
    def cuStreamSynchronize(self, hStream: SimulatedStream) -> None:
        """Wait for all work on a stream."""
        if hStream.recording is not None:
            hStream.recording.valid = False
            raise RefusedError(CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        for work in hStream.last:
            self._settle(work)
        need(not hStream.context.lost, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)

    @answered
    def cuStreamWaitEvent(
        self, hStream: SimulatedStream, hEvent: SimulatedEvent, Flags: int
    ) -> None:
        """Let a stream wait for an event, or take part in the recording that the event is of."""
        self._check_mine(hStream)
        self._known(hEvent)
        recording = hEvent.recording
        if recording is None:
            need(hStream.recording is None, CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION)
            hStream.last += [hEvent.work] if hEvent.work is not None else []
            return
        need(recording.under_way, CUresult.CUDA_ERROR_CAPTURED_EVENT)
        if hStream.context is not recording.origin.context:
            raise MisuseError("recordings over several GPUs are not simulated")
        if hStream.recording is None:
            hStream.recording = recording
            recording.streams.append(hStream)
        need(hStream.recording is recording, CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION)
        hStream.recorded += hEvent.nodes

    # -- events

    @answered
    def cuEventCreate(self, Flags: int) -> SimulatedEvent:
        """An event of the current context."""
        timed = Flags == CUevent_flags.CU_EVENT_DEFAULT
        return self._made(SimulatedEvent(kind="event", context=self._context, timed=timed))

    @answered
    def cuEventDestroy(self, hEvent: SimulatedEvent) -> None:
        """Free an event."""
        self._unmade(hEvent)

    @answered
    def cuEventRecord(self, hEvent: SimulatedEvent, hStream: SimulatedStream) -> None:
        """Let an event stand for what is on a stream."""
        self._check_mine(hStream)
        self._known(hEvent)
        need(hEvent.context is hStream.context, CUresult.CUDA_ERROR_INVALID_HANDLE)
        put = self._put(hStream, Action(label="event"))
        hEvent.recording, hEvent.work, hEvent.nodes = hStream.recording, None, ()
        if isinstance(put, Node):
            hEvent.nodes = (put,)
        else:
            hEvent.work = put

    @answered
    def cuEventSynchronize(self, hEvent: SimulatedEvent) -> None:
        """Wait for an event."""
        self._known(hEvent)
        need(hEvent.recording is None, CUresult.CUDA_ERROR_CAPTURED_EVENT)
        if hEvent.work is not None:
            waiting_for = {work.context for work in (hEvent.work, *hEvent.work.before)}
            self._settle(hEvent.work)
            if not hEvent.context.lost and any(context.lost for context in waiting_for):
                raise MisuseError("this waits for ever, for work of a GPU that is lost")
        need(not hEvent.context.lost, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)

    @answered
    def cuEventElapsedTime(self, hStart: SimulatedEvent, hEnd: SimulatedEvent) -> float:
        """Milliseconds from one event to another one."""
        ends = []
        for event in (hStart, hEnd):
            self._known(event)
            usable = event.timed and event.context is hStart.context
            if event.work is None or not usable:
                raise RefusedError(CUresult.CUDA_ERROR_INVALID_HANDLE)
            need(event.work.settled, CUresult.CUDA_ERROR_NOT_READY)
            ends.append(event.work.end)
        return 1e3 * (ends[1] - ends[0])

    # -- graphs

    @answered
    def cuStreamBeginCapture(self, hStream: SimulatedStream, mode: int) -> None:
        """Record what is put on a stream from now on."""
        self._check_mine(hStream)
        need(hStream.recording is None, CUresult.CUDA_ERROR_INVALID_VALUE)
        recording = Recording(origin=hStream, thread=threading.get_ident(), streams=[hStream])
        hStream.recording, hStream.recorded = recording, []
        self._recordings.append(recording)

    @answered
    def cuStreamEndCapture(self, hStream: SimulatedStream) -> SimulatedGraph:
        """The graph of what was recorded; every stream that took part must have joined again."""
        recording = hStream.recording
        if recording is None:
            raise RefusedError(CUresult.CUDA_ERROR_INVALID_VALUE)
        need(recording.origin is hStream, CUresult.CUDA_ERROR_STREAM_CAPTURE_UNMATCHED)
        here = threading.get_ident() == recording.thread
        need(here, CUresult.CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD)
        joined = {node for last in hStream.recorded for node in last.all_before()}
        self._end(recording)
        need(recording.valid, CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
        all_joined = joined >= set(recording.nodes)
        need(all_joined, CUresult.CUDA_ERROR_STREAM_CAPTURE_UNJOINED)
        return self._made(
            SimulatedGraph(kind="graph", context=hStream.context, recording=recording)
        )

    @answered
    def cuGraphInstantiate(self, hGraph: SimulatedGraph, flags: int) -> SimulatedGraph:
        """What can be launched of a graph."""
        self._known(hGraph)
        return self._made(
            SimulatedGraph(
                kind="executable graph",
                context=hGraph.context,
                recording=hGraph.recording,
            )
        )

    @answered
    def cuGraphLaunch(self, hGraphExec: SimulatedGraph, hStream: SimulatedStream) -> None:
        """Put what was recorded on a stream."""
        self._check_mine(hStream)
        self._known(hGraphExec)
        if hGraphExec.kind != "executable graph":
            raise MisuseError("a graph is launched once it is instantiated")
        need(hStream.recording is None, CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        made: dict[Node, Work] = {}
        roots = [*hStream.last, *hGraphExec.last]
        for node in hGraphExec.recording.nodes:
            after = [made[one] for one in node.after] or roots
            made[node] = self._work(node.action, hStream.context, after)
        hStream.last = list(made.values()) or roots
        hGraphExec.last = list(hStream.last)

    @answered
    def cuGraphExecDestroy(self, hGraphExec: SimulatedGraph) -> None:
        """Free what can be launched."""
        self._unmade(hGraphExec)

    @answered
    def cuGraphDestroy(self, hGraph: SimulatedGraph) -> None:
        """Free a graph."""
        self._unmade(hGraph)
