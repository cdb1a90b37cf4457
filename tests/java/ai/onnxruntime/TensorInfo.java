package ai.onnxruntime;

public class TensorInfo {
    public enum OnnxTensorType {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING
    }

    public final OnnxTensorType onnxType;
    private final long[] shape;

    TensorInfo(String type, long[] shape) {
        this.onnxType = OnnxTensorType.valueOf("ONNX_TENSOR_ELEMENT_DATA_TYPE_" + type);
        this.shape = shape.clone();
    }

    public long[] getShape() {
        return shape.clone();
    }
}
