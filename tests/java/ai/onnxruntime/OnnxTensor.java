package ai.onnxruntime;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.concurrent.atomic.AtomicInteger;

public class OnnxTensor implements OnnxValue {
    public static final AtomicInteger open = new AtomicInteger();
    final byte[] data;
    private final TensorInfo info;
    private boolean closed;

    OnnxTensor(byte[] data, TensorInfo info) {
        this.data = data;
        this.info = info;
        open.incrementAndGet();
    }

    public static OnnxTensor createTensor(OrtEnvironment env, Object data) throws OrtException {
        throw new OrtException("an array of Java's is not what is passed");
    }

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
        check(data, shape, data.order());
        ByteBuffer bytes = ByteBuffer.allocate(4 * data.remaining()).order(ByteOrder.nativeOrder());
        bytes.asFloatBuffer().put(data);
        return new OnnxTensor(bytes.array(), new TensorInfo("FLOAT", shape));
    }

    public static OnnxTensor createTensor(OrtEnvironment env, LongBuffer data, long[] shape) throws OrtException {
        check(data, shape, data.order());
        ByteBuffer bytes = ByteBuffer.allocate(8 * data.remaining()).order(ByteOrder.nativeOrder());
        bytes.asLongBuffer().put(data);
        return new OnnxTensor(bytes.array(), new TensorInfo("INT64", shape));
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape) throws OrtException {
        throw new OrtException("this is INT8, and no model here takes it");
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape, OnnxJavaType type) throws OrtException {
        check(data, shape, data.order());
        byte[] bytes = new byte[data.remaining()];
        data.get(bytes);
        return new OnnxTensor(bytes, new TensorInfo(type.name(), shape));
    }

    private static void check(Buffer data, long[] shape, ByteOrder order) throws OrtException {
        long elements = 1;
        for (long n : shape) {
            elements *= n;
        }
        if (!data.isDirect() || order != ByteOrder.nativeOrder() || data.position() != 0 || data.capacity() != elements) {
            throw new OrtException("not a direct buffer of " + elements + " elements in native order, rewound");
        }
    }

    public TensorInfo getInfo() {
        return info;
    }

    public ByteBuffer getByteBuffer() {
        return ByteBuffer.wrap(data.clone());
    }

    @Override
    public void close() {
        if (!closed) {
            closed = true;
            open.decrementAndGet();
        }
    }
}
