package ai.onnxruntime;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * In place of ONNX Runtime: a "model" is a text of lines `in|out NAME TYPE SIZE...`. Each output of floats is twice the first input,
 * and an output of another type the input of that type.
 */
public class OrtSession implements AutoCloseable {
    public static final AtomicInteger open = new AtomicInteger();
    public static volatile boolean hang;
    private final Map<String, NodeInfo> inputs = new LinkedHashMap<>();
    private final Map<String, NodeInfo> outputs = new LinkedHashMap<>();
    private boolean closed;

    OrtSession(String path) throws OrtException {
        try {
            for (String line : Files.readAllLines(Path.of(path))) {
                String[] words = line.split(" ");
                long[] shape = new long[words.length - 3];
                for (int i = 0; i < shape.length; i++) {
                    shape[i] = Long.parseLong(words[i + 3]);
                }
                Object info = words[2].equals("MAP") ? "a mapping" : new TensorInfo(words[2], shape);
                (words[0].equals("in") ? inputs : outputs).put(words[1], new NodeInfo(info));
            }
        } catch (IOException | RuntimeException e) {
            throw new OrtException("Error code - ORT_INVALID_PROTOBUF - message: " + e);
        }
        open.incrementAndGet();
    }

    public Set<String> getInputNames() {
        return new LinkedHashSet<>(inputs.keySet());
    }

    public Set<String> getOutputNames() {
        return new LinkedHashSet<>(outputs.keySet());
    }

    public Map<String, NodeInfo> getInputInfo() {
        return inputs;
    }

    public Map<String, NodeInfo> getOutputInfo() {
        return outputs;
    }

    public Result run(Map<String, OnnxTensor> given) throws OrtException {
        return run(given, outputs.keySet(), null);
    }

    public Result run(Map<String, OnnxTensor> given, Set<String> wanted) throws OrtException {
        return run(given, wanted, null);
    }

    public Result run(Map<String, OnnxTensor> given, Set<String> wanted, RunOptions options) throws OrtException {
        if (closed) {
            throw new IllegalStateException("Trying to score a closed OrtSession.");
        }
        if (!given.keySet().equals(inputs.keySet())) {
            throw new OrtException("Unknown input name");
        }
        while (hang && !(options != null && options.terminate)) {
            Thread.onSpinWait();
        }
        if (options != null && options.terminate) {
            throw new OrtException("Exiting due to terminate flag being set to true.");
        }
        Result result = new Result();
        for (String name : wanted) {
            TensorInfo info = (TensorInfo) outputs.get(name).getInfo();
            for (OnnxTensor tensor : given.values()) {
                if (tensor.getInfo().onnxType == info.onnxType) {
                    result.values.put(name, new OnnxTensor(twice(tensor), tensor.getInfo()));
                    break;
                }
            }
        }
        return result;
    }

    private static byte[] twice(OnnxTensor tensor) {
        ByteBuffer out = ByteBuffer.wrap(tensor.data.clone()).order(ByteOrder.nativeOrder());
        if (tensor.getInfo().onnxType == TensorInfo.OnnxTensorType.ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
            for (int i = 0; i < out.capacity(); i += 4) {
                out.putFloat(i, 2 * out.getFloat(i));
            }
        }
        return out.array();
    }

    @Override
    public void close() {
        if (closed) {
            throw new IllegalStateException("Trying to close an already closed OrtSession.");
        }
        closed = true;
        open.decrementAndGet();
    }

    public static class SessionOptions implements AutoCloseable {
        public static volatile int threads;

        public void setIntraOpNumThreads(int n) {
            threads = n;
        }

        @Override
        public void close() {}
    }

    public static class RunOptions implements AutoCloseable {
        volatile boolean terminate;
        private boolean closed;

        public void setTerminate(boolean value) {
            if (closed) {
                throw new IllegalStateException("Trying to use a closed RunOptions");
            }
            terminate = value;
        }

        @Override
        public void close() {
            closed = true;
        }
    }

    public static class Result implements AutoCloseable {
        final Map<String, OnnxTensor> values = new LinkedHashMap<>();

        public OnnxValue get(int index) {
            List<OnnxTensor> all = new ArrayList<>(values.values());
            return all.get(index);
        }

        public Optional<OnnxValue> get(String name) {
            return Optional.ofNullable(values.get(name));
        }

        @Override
        public void close() {
            values.values().forEach(OnnxTensor::close);
        }
    }
}
